import numpy as np

from mmgpt.media.container import container, packets


def test_decoders_have_one_thread_since_workers_share_the_cores(write_clip):
    with container(write_clip([10] * 9, sounds=(np.zeros(4000),)), "a video") as file:
        for packet in packets(file, "clip", *file.streams):
            packet.decode()
        threads = [(stream.type, stream.codec_context.thread_count) for stream in file.streams]
    assert threads == [("video", 1), ("audio", 1)]
