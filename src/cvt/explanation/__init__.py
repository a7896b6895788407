"""What people look at: where a model attends."""
