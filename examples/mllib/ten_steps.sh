#!/bin/sh
# The ten steps of kernel-ml-lib's protocol with nothing but files: ROOT is where `uxk mount` shows a kernel that has
# the module mllibdev.  What is learned is the level of a stream of bytes; the model is their mean.
set -eu
: "${ROOT:?set it to the folder that uxk mount serves}"
device=$ROOT/dev/mllibdev
system=$ROOT/sys/class/ml_lib_test/mllibdev
model=$system/ml_model1
level=$ROOT/sys/module/mllibdev/parameters/level

look() { cat "$model/$1"; }

until_true() { # until_true WORDS...: for at most a minute
    tries=600
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then echo "still not: $*" >&2; exit 1; fi
        sleep 0.1
    done
}

applied_since() { [ "$(look hints_applied)" -gt "$1" ]; }
is_promoted() { case $(look mode) in collaboration | recommendation) ;; *) false ;; esac; }
pays() { [ "$(look efficiency_ppm)" -gt 0 ]; }
harms() { [ "$(look efficiency_ppm)" -lt 0 ] || [ "$(look mode)" = emergency ]; }

train() { # steps 2 to 6: the mean of eight datasets, in $mean
    sum=0
    for round in 1 2 3 4 5 6 7 8; do
        echo prepare_dataset >"$model/control"
        byte=$(od -An -v -tu1 -N1 "$device")
        sum=$((sum + byte))
        echo discard_dataset >"$model/control"
    done
    mean=$((sum / 8))
}

advise() { # a byte, as the device takes advice
    printf "\\$(printf %03o "$1")" >"$device"
}

echo start >"$model/control"
echo "1 start: $(look state), mode $(look mode)"

echo prepare_dataset >"$model/control"
echo "2 prepare_dataset: $(look datasets/rows/state)"

exec 3<"$device"
first=$(dd bs=512 count=1 <&3 2>/dev/null | wc -c)
echo "3 read: $((first)) bytes, $(look datasets/rows/state)"
rest=$(cat <&3 | wc -c)
exec 3<&-
echo "3 read: $((rest)) bytes, $(look datasets/rows/state)"

echo discard_dataset >"$model/control"
echo "4 discard_dataset: $(look datasets/rows/state)"

train
echo "5 trained on $round datasets"
echo "6 the level is about $mean"

advise "$mean"
echo "7 advice was taken in: $(look hints_received)"

until_true applied_since 0
until_true is_promoted
echo "8 the subsystem follows it: at least half of its units"

until_true pays
echo "9 efficiency is above 0"

echo 160 >"$level"
until_true harms
echo "10 the level has moved, efficiency has degraded"
train
advise "$mean"
until_true pays
until_true is_promoted
echo "10 corrected to $mean: efficiency is above 0 again"
echo stop >"$model/control"
