"""What the network is asked for: preconditionings in sigma behind one contract, and the loss."""
