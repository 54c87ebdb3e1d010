"""Random load over three neurons while a driver breaks things at random; at the end the books must balance."""
