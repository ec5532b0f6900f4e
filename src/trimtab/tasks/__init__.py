"""Fine-tuning tasks with real weights and real data, one file each."""
