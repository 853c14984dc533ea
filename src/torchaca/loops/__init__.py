"""From a problem to its accepted steps and its outputs; and why a solve stopped."""
