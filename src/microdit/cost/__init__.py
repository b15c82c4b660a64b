"""What training costs, from counting: FLOPs, memory, a device's peak, networks of equal cost."""
