"""Media: pictures, recordings and videos, from any file to what an encoder reads."""
