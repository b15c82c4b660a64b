"""Every file that holds weights: ours in one piece or sharded, released ones, from stage to stage, out to others."""
