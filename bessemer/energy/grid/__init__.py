"""Carbon of a kilowatt-hour: by region and year, by the hour, and when a run should wait."""
