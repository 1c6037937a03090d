"""What is minimised: objectives, and checks of their labels."""
