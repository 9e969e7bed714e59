"""Elements of the gradient that are exactly zero: an instrument, a rule, a gauge and a sink for cockpit-lite."""
