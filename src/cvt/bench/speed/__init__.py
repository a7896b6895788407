"""Speed and memory of networks side by side, each form in a fresh process."""
