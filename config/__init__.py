"""What an operator may set, and the facts of the model folder it points to. Imports nothing of ours."""
