"""What is known of f: how it is called, what it reads, what it leaves behind, how precisely it computes."""
