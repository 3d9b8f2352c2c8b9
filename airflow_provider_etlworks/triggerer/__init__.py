"""What a trigger does in the triggerer. Triggers import it in a thread, once they run."""
