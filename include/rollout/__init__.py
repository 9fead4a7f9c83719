"""What is deployed, how it gets there and back."""
