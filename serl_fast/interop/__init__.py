"""Other projects' interfaces over our parts. Each module needs the project that it is named after."""
