"""Studies of the methods themselves: the ladder, the variance of estimators, the textbook figures."""
