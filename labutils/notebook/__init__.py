"""What the notebooks show and ask: figures, explorers, exercises, claims."""
