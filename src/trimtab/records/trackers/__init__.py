"""Other people's trackers that a run can be told to: TensorBoard, MLflow, Weights & Biases."""
