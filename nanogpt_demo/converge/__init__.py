"""Small models on well-known data sets, trained with and without RCA."""
