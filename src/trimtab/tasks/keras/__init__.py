"""What tasks on Keras share."""
