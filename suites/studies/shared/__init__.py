"""What several studies use: options, contenders, resuming, pages of tables."""
