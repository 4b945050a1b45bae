"""The worker's side of the road: what is due is claimed, tried, and its end recorded."""
