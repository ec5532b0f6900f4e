"""Methods against each other at equal compute."""
