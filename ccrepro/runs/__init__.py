"""One run: its folder, checkpoints, resume and record; weights on disk; a trained model on a stream."""
