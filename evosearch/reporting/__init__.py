"""Reports on recorded searches: leaderboards, status, test table, exports."""
