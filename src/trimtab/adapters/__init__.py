"""One file per framework that people train with."""
