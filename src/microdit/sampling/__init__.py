"""From noise to latents: noise schedules, samplers and guidance, functions over any denoiser D(x, sigma)."""
