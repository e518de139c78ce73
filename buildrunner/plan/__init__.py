"""What a build is compiled to, and the pure rules by which its steps run."""
