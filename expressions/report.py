def draw_samples(*a): pass
def draw_distribution(*a): pass
