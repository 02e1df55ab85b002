"""C sources that go with an exported network: its header, and an example that calls it."""

from __future__ import annotations

from starfire_cli.sparse.export.driver import ARGUMENT, BUSY, MEMORY, PROCESSOR
from starfire_cli.sparse.export.module import THREADS, Description


def header(identity: Description, *, threads: bool) -> str:
    """NAME.h."""
    name, (C, H, W) = identity.name, identity.image
    guard = f"{name.upper()}_H"
    how = f"1 to {THREADS}" if threads else "1: it was exported without --threads"
    return f"""/* {name}: a sparse network as machine code, written by `starfire export`.

   It takes images of {C} x {H} x {W} float32, pixels in [0, 1], one after the other (NCHW), and gives
   {identity.outputs} logits for each; it subtracts the mean and divides by the standard deviation itself. Nothing is
   read from files, and there is no global state: any number of networks may be created, and used by different threads
   at a time. Functions return 0, or one of the codes below. */
#ifndef {guard}
#define {guard}

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

enum {{
    {name.upper()}_ARGUMENT = {ARGUMENT},   /* a null pointer, a negative number, or too many threads */
    {name.upper()}_MEMORY = {MEMORY},     /* malloc gave none, or `bytes` are too few */
    {name.upper()}_PROCESSOR = {PROCESSOR},  /* this processor lacks instructions that the code needs */
    {name.upper()}_BUSY = {BUSY}        /* another thread is running this network: create one for each thread */
}};

typedef struct {name}_network {name}_network;

typedef struct {{
    int32_t version;                 /* of this interface: 1 */
    int32_t channels, height, width; /* of an image */
    int32_t outputs;                 /* logits for each image */
    int32_t threads;                 /* that one network may use at most */
    float mean[3], std[3];           /* of the pixels; applied inside */
    char masks[72];                  /* SHA-256 of the masks, in hexadecimal; empty where there were none */
}} {name}_description;

/* What the network is. */
const {name}_description *{name}_info(void);

/* The bytes that a network needs for so many threads; 0 where there cannot be so many ({how}). */
int64_t {name}_memory(int32_t threads);

/* Creates a network in `memory`, which stays the caller's and must outlive it, or with malloc where that is NULL.

   network: where its address goes; NULL where this fails.
   threads: that run it, the caller's included ({how}).
   bytes:   of `memory`. */
int32_t {name}_create({name}_network **network, int32_t threads, void *memory, int64_t bytes);

/* Runs any number of images: `pixels` are images * {C * H * W} floats, `logits` images * {identity.outputs}. */
int32_t {name}_run({name}_network *network, const float *pixels, int64_t images, float *logits);

/* Frees what {name}_create has allocated; NULL is let alone. */
void {name}_free({name}_network *network);

#ifdef __cplusplus
}}
#endif
#endif
"""


def example(identity: Description, link: str) -> str:
    """example.c: a program that classifies one image of raw floats, or a grey one."""
    name, (C, H, W) = identity.name, identity.image
    return f"""/* Written by `starfire export`: classifies an image of {C} x {H} x {W} raw float32 in [0, 1].
   Without one it takes a grey image. To build and run it:
   {link} */
#include <stdio.h>
#include <stdlib.h>
#include "{name}.h"

int main(int count, char **arguments)
{{
    const {name}_description *about = {name}_info();
    size_t pixels = (size_t)about->channels * about->height * about->width;
    float *image = malloc(pixels * sizeof *image), *logits = malloc(about->outputs * sizeof *logits);
    {name}_network *network;
    int32_t best = 0, error = {name}_create(&network, 1, NULL, 0);
    if (image == NULL || logits == NULL || error != 0)
        return fprintf(stderr, "cannot create the network (%d)\\n", error), 1;
    for (size_t i = 0; i < pixels; i++)
        image[i] = 0.5f;
    if (count > 1) {{
        FILE *file = fopen(arguments[1], "rb");
        if (file == NULL || fread(image, sizeof *image, pixels, file) != pixels)
            return fprintf(stderr, "%s: not %zu floats\\n", arguments[1], pixels), 1;
        fclose(file);
    }}
    if ((error = {name}_run(network, image, 1, logits)) != 0)
        return fprintf(stderr, "cannot run the network (%d)\\n", error), 1;
    for (int32_t i = 0; i < about->outputs; i++) {{
        printf("%d %.6g\\n", i, logits[i]);
        best = logits[i] > logits[best] ? i : best;
    }}
    printf("class %d\\n", best);
    {name}_free(network);
    free(image), free(logits);
    return 0;
}}
"""
