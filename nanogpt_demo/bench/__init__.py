"""What a step costs: ARS and its peers beside the bare optimizer."""
