"""What tasks on PyTorch share."""
