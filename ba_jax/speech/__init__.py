"""Speech tools for making data: recogniser, aligner, synthesiser, voice activity, speakers."""
