"""What our HTML pages share: one look, drawings from stored numbers, and texts that stay texts."""
