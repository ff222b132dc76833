"""Ray and the run: who exists, and who waits for whom. The only folder that imports ray."""
