"""What is a trained model used for? Sounds made and edited, and files of them."""
