"""What a merged model is: recipes as pure data, with no torch."""
