"""Training that goes on after a kill: what is trained, towards what, and the model cut down to be taught."""
