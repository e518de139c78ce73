// see helper
