"""Tables of images as the Hugging Face hub has them, parquet and arrow files: a source of convert."""
