"""The trainers that BeGin's methods extend, and that users' own extend."""
