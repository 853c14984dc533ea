"""Front doors with other libraries' arguments."""
