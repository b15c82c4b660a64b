"""The mathematics of diffusion: functions over tensors and a callable network; nothing here has state."""
