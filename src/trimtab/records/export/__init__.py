"""A recorded schedule, in the form of each framework."""
