"""What an operator sees of a running server: metrics now, API and status page later."""
