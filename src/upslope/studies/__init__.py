"""Studies of the methods themselves: sweeps, the ladder, the variance of estimators, the textbook figures."""
