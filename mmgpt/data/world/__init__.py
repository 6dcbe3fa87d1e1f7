"""The demo world: pictures, sounds, clips and questions about them, rendered afresh from a seed; nothing is stored.

    sample = world_sample(17, "train", seed=0)
    score_answer(sample, "a red circle")

Training and held-out samples come from different seeds. They could coincide only if all that is drawn fell alike:
places, sizes, shades, lengths and loudness are continuous or finely graded, so in practice no picture, sound or clip
ever does. What does recur is what they show ("a red circle and a white square"), save for the combinations of colour
and shape in `scenes.NEW`, which training never shows, tells or asks about and held-out samples draw one time in five;
and the sums of the text task, of which there are only 36.
"""

from mmgpt.data.world.make import World, score_answer, tasks_of, world_sample

__all__ = ["World", "score_answer", "tasks_of", "world_sample"]
