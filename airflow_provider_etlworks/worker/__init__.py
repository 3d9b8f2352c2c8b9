"""What a task does while it runs on a worker. Operators and sensors import it when they are executed, not before."""
