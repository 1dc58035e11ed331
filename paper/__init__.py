"""The paper: its prose, and what turns the result files into its numbers, tables and figures."""
