"""Methods that search for values: rivals and controls."""
